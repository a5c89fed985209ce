"""The built-in cohort: head images of real anatomy, real outlines and real physics in four unlike hospitals."""

from data_prep.phantom.anatomy import AnatomyRange
from data_prep.phantom.cohort import CLASSES, PIXEL_RANGE, Cohort, SiteArrays, site_arrays, site_names, write_site
from data_prep.phantom.ct import CtProtocol
from data_prep.phantom.mri import MriProtocol
from data_prep.phantom.sites import SiteProtocol, default_sites

__all__ = [
    "CLASSES",
    "PIXEL_RANGE",
    "AnatomyRange",
    "Cohort",
    "CtProtocol",
    "MriProtocol",
    "SiteArrays",
    "SiteProtocol",
    "default_sites",
    "site_arrays",
    "site_names",
    "write_site",
]
