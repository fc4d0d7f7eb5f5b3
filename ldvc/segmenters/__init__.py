"""Segmenters beside LDVC, with its calls: classes in, embeddings; picture in, features; both in, logits on a grid."""
