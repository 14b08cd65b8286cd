"""What works here. In: this computer, and files. Out: a diagnosis in rows."""
