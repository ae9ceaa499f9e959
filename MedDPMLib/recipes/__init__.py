"""With which settings is a model trained?"""
