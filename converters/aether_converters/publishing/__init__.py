"""What is published with a model. In: a conversion's report. Out: a folder."""
