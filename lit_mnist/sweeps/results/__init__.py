"""What a study has produced so far.

progress.py    live display while a sweep runs
status.py      `lit-mnist sweep status` and `sweep list`
export.py      `lit-mnist sweep best` (a trial's configuration) and `sweep export` (all trials as a table)
parent_run.py  what the study's parent run in MLflow receives: summary.json, metrics, figures, study.html
description.py the study's description in MLflow's UI: which point is best, how sure that is, how to go on
study_page.py  keeps that page up to date while the sweep runs, with the trials' names and a saved view
figures.py     figures: history, learning curves, importances, slices, parallel coordinates, Pareto front
heat_map.py    figure: the first objective over two parameters, as a map or a table
importances.py how much each parameter matters
confirmation.py  the leaders with further seeds (`lit-mnist sweep confirm`), and which of them are tied
plotting.py    axes, palette and marks that the figures have in common
html.py        the figures as one page with the details of each trial (template study.html)
"""
