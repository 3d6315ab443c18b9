from ngdiff.cli import main

if __name__ == "__main__":
    main()
