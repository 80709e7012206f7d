"""The results that a caller gets: the Timeline and the Comparison, with everything that they can
print, draw and write.
"""
