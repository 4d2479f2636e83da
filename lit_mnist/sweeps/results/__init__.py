"""What a study has produced so far.

progress.py    live display while a sweep runs
status.py      `lit-mnist sweep status` and `sweep list`
export.py      `lit-mnist sweep best` (a trial's configuration) and `sweep export` (all trials as a table)
parent_run.py  what the study's parent run in MLflow receives: summary.json, metrics, figures, study.html
description.py the study's description in MLflow's UI: which point is best, how sure that is, how to go on
study_page.py  keeps that page up to date while the sweep runs, with the trials' names and a saved view
figures.py     static figures: history, parameter importances, parallel coordinates, Pareto front
heat_map.py    static figure: the first objective over two parameters
html.py        interactive page, drawn by Optuna with plotly
"""
