"""Segmenters beside LDVC: CLIP without training, CLIPSeg, exported programs; each has the calls of `Segmenter`."""
