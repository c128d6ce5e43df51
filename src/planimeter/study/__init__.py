"""Studies: a YAML specification, its trials, a store for their results, and their statistics."""

from planimeter.study.spec import Study, built_in_studies, load_study
from planimeter.study.store import Record, Store
from planimeter.study.trial import Trial, trials_of

__all__ = ["Record", "Store", "Study", "Trial", "built_in_studies", "load_study", "trials_of"]
