"""What report is made of: tables, pages, pictures and the paper's own numbers."""
