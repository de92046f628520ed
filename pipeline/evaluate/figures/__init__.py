"""The report's figures as inline SVG: matplotlib without pyplot's state, colours left to the page's style sheet."""
