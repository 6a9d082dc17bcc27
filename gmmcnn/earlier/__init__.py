"""Names by which modules were imported before they moved: ``gmmcnn.structural`` is ``gmmcnn.pruning.structural``.

The folder is on the package's path; each file stands for the module that it imports.
"""
