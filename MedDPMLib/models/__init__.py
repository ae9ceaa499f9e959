"""How is a model described, stored, recognized and loaded?"""
