"""What mkdocs needs to make the site from pages that are written for GitHub; see ``mkdocs.yml``."""
