"""Pages of docs/ that are made from the code and from the results in the repository, and never edited by hand."""
