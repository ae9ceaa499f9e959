"""How alike, how sharp, how varied are images?"""
