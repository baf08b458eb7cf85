"""The site of the course: its files, and its pages in a real browser."""
