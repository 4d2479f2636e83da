"""The results of a study.

progress.py    live display while a sweep runs
status.py      `lit-mnist sweep status` and `sweep list`
export.py      `lit-mnist sweep best` (a trial's configuration) and `sweep export` (all trials as a table)
parent_run.py  files that are logged to the study's parent run in MLflow: summary.json, figures, study.html
description.py the study's description in MLflow's UI: the best point, its uncertainty, the next commands
study_page.py  updates that description during the sweep, with the trials' names and a saved view
figures.py     figures: history, learning curves, importances, slices, parallel coordinates, Pareto front
heat_map.py    figure: the first objective over two parameters, as a map or a table
importances.py the importance of each parameter
confirmation.py  the best points with further seeds (`lit-mnist sweep confirm`), and which of them are tied
plotting.py    axes, palette and marks that the figures share
html.py        the figures as one page with the details of each trial (template study.html)
"""
