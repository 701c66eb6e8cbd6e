"""All results beside the paper's: tables, plots, and the page that holds them (`python -m paczo.report`).

It reads finished runs and published tables and writes a report; nothing imports it but its tests.
"""
