"""The paper's figures and tables, made again from this project's data and result files.

* :mod:`ctmasknet.paper.variants`: every config with what its model measures,
* :mod:`ctmasknet.paper.published`: the published numbers, each with its source,
* :mod:`ctmasknet.paper.runs`: folders of results and the variant each is of,
* :mod:`ctmasknet.paper.tables`: a run in a few words,
* :mod:`ctmasknet.paper.tables` and :mod:`ctmasknet.paper.tables`: the tables,
* :mod:`ctmasknet.draw.lesion_statistics`: the figures.
"""
