"""Search for a recipe's best settings: one file each for the space, trials, the study, the report.

    tune(recipe, space, trials)  --claims-->  a trial = one `tfllm train` in a process of its own

A study is a directory: study.db (Optuna's, SQLite), recipe.yaml and space.yaml (what is searched),
trials/ (recipe, log and run of each), trials.json, trials.txt, best.yaml, history.png,
parameters.png. Any number of processes may work on one study at once.
"""
