"""How similar, how sharp, how varied are images?"""
