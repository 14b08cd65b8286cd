"""What was found. In: figures and views. Out: the value `Report`, and it as JSON and as a page."""
