"""Pages a person can hand to another: what was trained, released, decided, each as one HTML file.

Nothing here measures or decides: it shows what a run, a release or a gate wrote down.
"""
