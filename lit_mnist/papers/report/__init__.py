"""Code that the papers share: defining, running, judging, storing and showing experiments.

    experiment.py  the class of experiments, the list of all experiments, and selection by name
    claims.py      a claim of a paper, and the six possible verdicts
    statistics.py  statistical tests: sign flips, and the number of seeds that a claim needs
    trained.py     a trained stage: its metrics, model and data, and measurements that are cached in its run
    probes.py      measures of frozen features: linear probe, nearest neighbours, linear map back to the images
    heads.py       softmax layers on a frozen encoder, many trained at once
    reproduce.py   `lit-mnist reproduce`: train, measure, judge, draw, store
    results.py     stored results: docs/results/PAPER/EXPERIMENT.json, into which new seeds are merged
    table.py       `lit-mnist reproduce --table`: docs/results.md from the stored results
    description.py descriptions of results and papers in MLflow's UI
    drawing.py     bars, marks and curves with the spread over the seeds

Mean, confidence interval, Student's test and Holm's correction are in `lit_mnist.tracking.queries.statistics`.
"""
