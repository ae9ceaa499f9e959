"""Are synthetic volumes of use? Segmenters trained with and without them, compared on patients that none has seen."""
