"""What keeps a model from becoming a small int8 file, before an epoch is spent."""

from kdprune.doctor.diagnose import diagnose
from kdprune.doctor.findings import LayerRow, Obstacle
from kdprune.doctor.report import Diagnosis

__all__ = ["Diagnosis", "LayerRow", "Obstacle", "diagnose"]
