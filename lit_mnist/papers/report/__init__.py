"""What the papers share: how experiments are defined, run, judged, stored and shown.

    experiment.py  what an experiment is; the list of all of them, and selection by name
    claims.py      a claim of a paper, and the rules that decide it
    trained.py     a trained stage: its metrics, model and data, and measurements that are cached in its run
    reproduce.py   what `lit-mnist reproduce` does: train, measure, judge, draw, store
    results.py     stored results: one JSON file per experiment and preset
    table.py       `lit-mnist reproduce --table`: docs/results.md from the stored results
    drawing.py     bars, marks and curves with the spread over the seeds

Mean and confidence interval over the seeds are computed in `lit_mnist.tracking.queries.statistics`.
"""
