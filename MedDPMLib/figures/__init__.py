"""How do volumes become pictures?"""
