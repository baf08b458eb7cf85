"""The tests. Folders mirror the rooms of `utils`; beside them:

helpers      code for several tests: tiny models, workers that are killed or launched
exercises    the checks of the exercises, with right and wrong solutions for each notebook
notebooks    the form of the notebooks, and single cells
stages       whole training stages: with kills, a full disk, several processes
gpu          the emulated GPU, and every notebook on it
hub          a Hub server on loopback, which can fail
browser      the panel and the demo in Chromium
benchmarks   the committed figures must belong to the current settings
repository   files, names, licences, safety, the map of the packages
"""
