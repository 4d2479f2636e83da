"""Reading what the tracking store knows: the commands `runs`, `compare` and `ui`, and how runs are found.

    listing     `lit-mnist runs`: the runs as a table or as JSON
    reap        `lit-mnist runs --reap`: set runs whose process is dead from RUNNING to KILLED
    compare     `lit-mnist compare`: what differs between runs, in the terminal and as an HTML page (compare.html)
    ui          `lit-mnist ui`: start MLflow's UI
    lookup      which run an id, the beginning of an id or `last` names; a run's folder, status and artifacts
    reader      read many runs at once: from the SQLite file directly, from any other store through MLflow
    search      the one loop over the pages of MLflow's searches
    grouping    group the runs that differ only in their seed
    statistics  mean and confidence interval over seeds; paired differences
    metrics     which direction of a metric is better, which metrics are shares

`listing`, `reap`, `compare` and `ui` are commands; they call the other modules, never the other way round.
"""
