"""Figures of many run folders, from the table of `lottery.analysis.runs.load_runs`: a family a file."""
