"""The paper's figures and tables, made again from this project's data and result files.

:mod:`.tables` writes the tables, :mod:`.zoo` the model zoo, :mod:`.suppression` Figure 2
(:mod:`ctmasknet.draw.lesion_statistics` Figure 1). :mod:`.published` holds the published numbers,
:mod:`.variants` every config and what its model measures, :mod:`.runs` folders of results.
"""
