"""A DICOM network node that watermarks every image on its way to the PACS."""

__version__ = "0.1.0"
