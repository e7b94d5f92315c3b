"""Cleaning: parsers, rules, repairs, duplicates, contamination, topics, counts."""
