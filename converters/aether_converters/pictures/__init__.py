"""Picture files. In: paths and a model that can be called. Out: enlarged pictures."""
