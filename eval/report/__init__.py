"""The report: one HTML file that shows a run, and the same numbers as CSV and Markdown."""
