"""What an artefact is worth. In: a file that can be called, and its source. Out: figures."""
