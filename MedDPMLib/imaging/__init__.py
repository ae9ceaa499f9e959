"""How are images read, placed, resampled and normalized?"""
