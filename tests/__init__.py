"""The tests. Folders mirror the rooms of `utils`; beside them:

helpers      what several tests use and is no test: tiny models, workers that are killed or launched
exercises    the exercises' checks, and right and wrong solutions of each notebook
notebooks    the notebooks' form, and cells that are tested by themselves
stages       whole training stages: killed, with a full disk
gpu          the emulated GPU, and every notebook on it
hub          a Hub on loopback, with faults
browser      the panel and the demo in Chromium
benchmarks   that the committed figures belong to today's settings
repository   files, names, licences, safety, the map of the house
"""
