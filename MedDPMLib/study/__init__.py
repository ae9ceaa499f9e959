"""The blinded reader study: can experts tell a synthetic volume from a real one?

An organizer designs a study (:mod:`.create`), readers answer in 3D Slicer (:mod:`.reading`), and the answers are
analyzed (:mod:`.analysis`). Truth is 1 for synthetic and 0 for real everywhere; a rating is the confidence that a case
is synthetic.
"""
