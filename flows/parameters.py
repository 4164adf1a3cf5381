"""Types of flows' parameters: what Prefect's UI offers, and its server refuses before a run begins.

A parameter's description is what its flow's docstring says under `Args:`; that is where Prefect reads it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Place = Annotated[str, Field(min_length=1, max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Actor = Annotated[str, Field(min_length=1, max_length=400)]
Variant = Literal["base", "plus"]
Crop = Literal["centre", "pad"]
BriefAsYaml = Annotated[str, Field(min_length=1, max_length=500_000)]
Workers = Annotated[int, Field(ge=0, le=64)]
