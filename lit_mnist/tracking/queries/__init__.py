"""Reading the tracking store: the commands `runs`, `compare` and `ui`, and how runs are found.

    listing     `lit-mnist runs`: the runs as a table or as JSON
    reap        `lit-mnist runs --reap`: set runs whose process is dead from RUNNING to KILLED
    compare     `lit-mnist compare`: differences between runs, in the terminal and as an HTML page (compare.html)
    ui          `lit-mnist ui`: start MLflow's UI
    lookup      find a run by its id, the beginning of its id or `last`; its folder, status and artifacts
    reader      read many runs at once: from the SQLite file directly, from any other store through MLflow
    search      searches of MLflow, page by page
    grouping    group the runs that differ only in their seed
    statistics  mean and confidence interval over seeds; paired differences
    metrics     which direction of a metric is better, which metrics are shares

`listing`, `reap`, `compare` and `ui` are commands. They use the other modules, which do not use them.
"""
