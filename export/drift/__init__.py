"""How the error of quantization grows from depth to depth: measured on a text beside the same model in float.

``models.py`` opens what is compared, ``measure.py`` runs it, ``chart.py`` draws it.
"""
