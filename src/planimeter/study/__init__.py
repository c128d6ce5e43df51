"""Studies: a YAML specification, its trials, and a store for their results."""

from planimeter.study.spec import Study, built_in_studies, load_study
from planimeter.study.store import Record, Store
from planimeter.study.trial import Trial, trials_of

__all__ = ["Record", "Store", "Study", "Trial", "built_in_studies", "load_study", "trials_of"]
