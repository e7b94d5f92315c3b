"""The report: scores, comparison, charts, pages, model cards."""
