"""What clean is made of: parsers, rules, duplicates, contamination, topics, accounts."""
