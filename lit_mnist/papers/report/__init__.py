"""What the papers share: how experiments are defined, run, judged, stored and shown.

    experiment.py  what an experiment is; the list of all of them, and selection by name
    claims.py      a claim of a paper, and the six verdicts on it
    statistics.py  the tests behind them: Student's t, sign flips, Holm, how many more seeds
    trained.py     a trained stage: its metrics, model and data, and measurements that are cached in its run
    probes.py      what frozen features hold: linear probe, nearest neighbours, linear map back to the images
    heads.py       softmax layers on a frozen encoder, many trained at once
    reproduce.py   what `lit-mnist reproduce` does: train, measure, judge, draw, keep
    results.py     kept results: docs/results/PAPER/EXPERIMENT.json, into which new seeds are merged
    table.py       `lit-mnist reproduce --table`: docs/results.md from the kept results
    description.py what MLflow's UI shows of a result and of a paper
    drawing.py     bars, marks and curves with the spread over the seeds

Mean and confidence interval over the seeds are computed in `lit_mnist.tracking.queries.statistics`.
"""
