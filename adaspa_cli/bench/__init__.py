"""Methods side by side on one model: which runs make a bench, making them, and tables from their reports."""
