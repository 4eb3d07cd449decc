"""Everything that uses MLflow: one flat run a baseline, a cell and a sweep, found again by their keys.

Runs are created when their work is done, so that a killed process leaves none half written; those that a process
killed in between has left RUNNING are ended by the next one that starts.
"""
