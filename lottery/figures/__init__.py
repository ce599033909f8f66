"""Figures of run folders, drawn from the table of `lottery.record.table.load_runs`; each file holds one family."""
