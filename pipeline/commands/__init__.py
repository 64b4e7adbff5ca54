"""Commands of `sluice` beyond the core: one click command per file, named in `pipeline.cli.MODULES`.

A file here says how a command is called and how its answer is shown; what it does stands beside `pipeline/catalog.py`.
Nothing heavy is imported before the command runs.
"""
